#include <Eigen/Dense>
#include <chrono>
#include <cstdio>
#include "tplimit/math/tall_products.hpp"
using namespace Eigen; using namespace tplimit;
double now(){ timespec t; clock_gettime(CLOCK_PROCESS_CPUTIME_ID,&t); return t.tv_sec+1e-9*t.tv_nsec; }
int main(){ for (int m : {8,40,320}) for (int n : {4,8,32}) { int R=1024; 
 int nc=16; MatrixXd A=MatrixXd::Random(R,m*nc), B=MatrixXd::Random(R,n*nc), C=MatrixXd::Zero(m,n), Y=MatrixXd::Zero(R,n*nc), W=MatrixXd::Random(m,n);
 auto t=[&](auto f){ double best=1e9; for(int k=0;k<7;k++){ int rep=std::max(1,(int)(2e8/(2.0*R*m*n*nc))); double s=now(); for(int r=0;r<rep;r++) for(int c=0;c<nc;c++) f(c); best=std::min(best,(now()-s)/rep/nc);} return 2.0*R*m*n/best*1e-9; };
 printf("m=%d n=%d inner: mine %.1f eigen %.1f | product: mine %.1f eigen %.1f GF\n",m,n,
  t([&](int c){add_inner_products(R,A.data()+c*R*m,R,m,B.data()+c*R*n,R,n,C.data(),m);}), t([&](int c){C.noalias()+=A.middleCols(c*m,m).transpose()*B.middleCols(c*n,n);}),
  t([&](int c){add_product(R,A.data()+c*R*m,R,m,W.data(),m,n,Y.data()+c*R*n,R);}), t([&](int c){Y.middleCols(c*n,n).noalias()+=A.middleCols(c*m,m)*W;}));
 } }
